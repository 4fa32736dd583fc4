"""What is learned across episodes: initialisations of students, rates and policies, over a family of tasks."""
