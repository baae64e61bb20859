"""Third-party projects as clients: their own modules and trainers, with the callbacks of this package."""
