"""Nine published medical vision-language systems as compositions of parts."""
