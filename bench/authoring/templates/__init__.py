"""What `python -m bench new` starts from: each file is a working plug-in or its test, named my_defense or my_attack."""
