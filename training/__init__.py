"""Layouts to weights, with Lightning."""
