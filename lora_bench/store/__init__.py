"""The folder of records that every table and figure reads."""
