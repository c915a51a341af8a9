"""What everything else stands on: errors, settings, files, intervals. Nothing here changes a number of a trial."""
