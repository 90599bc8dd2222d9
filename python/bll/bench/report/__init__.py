"""Reports: JSON and CSV of measurements in, one page, one Markdown file and pictures out."""
