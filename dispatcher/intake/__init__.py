"""What people hand in: lead files, sequence files, device lists.

csv_file        delimited files of any size, encoding and shape, as records with their lines
phones          a phone number as it is written -> the digits the engine stores
lead_file       which column means what; one record -> one lead; how two leads of one phone merge
mapping         FIELD=COLUMN options
leads           a whole file into the table, chunk by chunk
rejects_file    what could not be taken, with the reason
yaml_file       YAML with the line of every key; what is wrong with it, in one line
sequence_file   YAML -> checked sequences
lint            all that is wrong or doubtful about sequence files
sequences       sequences into the tables, and what changed
plan            what that would do, and what becomes of leads under way
unmatched       triggers on leads that enrol nobody, and why
devices         devices from the command line or a file
"""
