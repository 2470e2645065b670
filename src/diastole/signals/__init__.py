"""Signals: where live input comes from: files of sound, ground motion and EEG, microphones, and networks of sensors."""
