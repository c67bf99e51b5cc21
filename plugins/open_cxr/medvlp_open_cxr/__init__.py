"""Openly licensed chest radiographs with texts, shipped inside the package, as a medvlp data source."""
