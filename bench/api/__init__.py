"""The functions behind `import bench` and the command line, by subject. `bench/__init__.py` lists the public ones."""
