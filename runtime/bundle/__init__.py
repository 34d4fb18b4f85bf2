"""What a bundle is: its manifest, files, graphs and engines, and the checks that they belong together."""
