"""What lies in a storage: folders, documents, tables, and how they are read and written."""
