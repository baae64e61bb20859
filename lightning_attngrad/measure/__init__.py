"""What is found at one moment of a run: maps, drift, rewriting, faithfulness; and what is drawn of it. No hooks."""
