"""The machine of the book: chapters and their parameters, runs, sweeps, claims, records, pages, the command."""
