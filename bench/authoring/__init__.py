"""What a plug-in author uses: the contract test and the files to start from."""
