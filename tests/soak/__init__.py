"""`make soak`: workers, a broker and a database under a seeded storm of faults, judged by a witness of their own."""
