"""What is learned across episodes: initialisations, hypernetworks and policies."""
