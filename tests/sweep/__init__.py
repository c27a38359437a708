"""Crash points that nobody named: a process dies at, or is refused, each system call with which it does a move."""
