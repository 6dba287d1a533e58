"""From records to what people read: nothing here measures, decides or opens a file.

words.py      single facts in words: counts, ratios, provenance, the why of a choice
table.py      a table of strings, the one thing that every medium draws · states.py  words of state and their legend
networks.py   tables of networks and plans · proofs.py  of times and fidelity · facts.py  of everything else
terminal.py   a table on a terminal
markdown.py   report.md
page.py       report.html, with page.css and page.js; sections.py its sections, markup.py its pieces, and the pictures:
  svg.py      elements, scales, axes · times.py  in which unit a plan's times may be shown
  tradeoff.py · waterfall.py · spectra.py · distributions.py · margins.py (of the error ledger)
"""
