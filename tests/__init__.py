"""The tests, a folder per room of the package.

Workers on Ray import test modules by their full name, so this is a package of its own name; what
several tests share is in plain modules beside this one, which are on the path by themselves.
"""
