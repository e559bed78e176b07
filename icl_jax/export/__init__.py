"""Parameters in the form that other libraries load."""
