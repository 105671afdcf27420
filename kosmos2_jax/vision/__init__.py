"""Pictures: reading them as the reference does, and drawing grounded text on them."""
