"""The tables that the papers print, transcribed."""
