"""The demo model: a small ConsistI2V trained from nothing on freely licensed media."""
