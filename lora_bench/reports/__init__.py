"""How an answer is shown: sections, tables, figures."""
