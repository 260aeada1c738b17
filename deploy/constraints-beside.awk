# Constraints for installing beside what is there: reads `pip freeze`, then a constraints file.
# What is there keeps its version; the file decides about the rest.
{
    split($0, parts, "==")
    name = tolower(parts[1])
    gsub(/[-_.]+/, "-", name)
}
!/^[A-Za-z0-9][-_.A-Za-z0-9]*==/ { next }
!(name in seen) { print; seen[name] = 1 }
