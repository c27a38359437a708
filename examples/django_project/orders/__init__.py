"""Orders, their payments and invoices, and a report of each day."""
