"""What everything stands on: formulas that saturate, fused passes, files, nesting, checks."""
