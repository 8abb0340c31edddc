"""What figures are drawn with: inks and looks of light and dark pages, and SVG that stands in a page."""
