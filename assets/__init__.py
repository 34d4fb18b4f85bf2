"""Files that travel with the package: the example photo and the demo bundle."""
