"""What is shown of components and recipes: sentences, pages, a JSON Schema. Light."""
