"""What modules do, as linear maps, found where the model is: inside jobs, torch alone."""
