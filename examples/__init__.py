"""Programs that show RWT at work; the tests run them."""
