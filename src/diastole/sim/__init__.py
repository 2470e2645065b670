"""Models of what would happen on other machines or in other numbers: simulated and predicted, never measured."""
