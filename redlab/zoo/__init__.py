"""Networks and images by name, file or folder; saved networks. Start with `networks`."""
