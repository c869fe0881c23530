"""The frozen backbone, the roles of its matrices, and adapters on them."""
