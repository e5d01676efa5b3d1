"""The viewer: records as sheets, sheets as a page; trees for notebooks."""
