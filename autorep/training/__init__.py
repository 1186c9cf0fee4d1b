"""One loop for baseline, search and fine-tuning."""
