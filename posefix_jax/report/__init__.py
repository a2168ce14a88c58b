"""What a person looks at: progress lines, tables, pictures."""
