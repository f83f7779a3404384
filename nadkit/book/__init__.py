"""The machinery of the book: chapters and their parameters, runs, sweeps, claims, records, pages, the command."""

import sys

# jsonschema, which nbformat imports, compiles a grammar of international web addresses wherever this package is
# installed: more than a second for each command, and no notebook has such a field. Without this package, jsonschema
# leaves that check out.
sys.modules.setdefault("rfc3987_syntax", None)
