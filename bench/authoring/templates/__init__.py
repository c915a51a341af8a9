"""What `python -m bench new` starts from: each file is a working plug-in or its test, under the name my_defense or
my_attack."""
