"""Every failpoint there is, with every action, on every ledger and broker: work is done once, whatever struck where."""
