# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_lmcache_ctl_global_optspecs
    string join \n url= token-file= json timeout= h/help V/version
end

function __fish_lmcache_ctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_lmcache_ctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_lmcache_ctl_using_subcommand
    set -l cmd (__fish_lmcache_ctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -s V -l version -d 'Print version'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "ping" -d 'Whether the daemon should get traffic, and how long its answer takes'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "status" -d 'The daemon in a few lines'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "config" -d 'What the daemon was told'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "top" -d 'A live view; q ends it'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "queue" -d 'What waits where, and what was lost'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "workers" -d 'The registered workers'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "sessions" -d 'The requests that the daemon remembers, the longest idle first'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "locks" -d 'Who holds objects, and how long'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "objects" -d 'The objects of a tier'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "quota" -d 'Bytes that each cache salt may use'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "adapters" -d 'The L2 adapters'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "pool" -d 'Pools in this machine\'s /dev/shm, with or without a daemon'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "clear" -d 'Drop the objects of L1'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "drain" -d 'End the daemon without losing anything: no new stores, flush to L2, wait for leases, exit'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "upgrade" -d 'Let a new process of the installed program take over: sockets, connections, pool; clients notice nothing'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "events" -d 'The daemon\'s events'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "doctor" -d 'Look at this machine: what would keep lmcached from working, and what to do'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "bench" -d 'Put load on the daemon and show how long its answers take'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "trace" -d 'Recordings of the storage layer; needs no daemon'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "completions" -d 'Print completions for a shell'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "man" -d 'Print the manual page'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand ping" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand ping" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand ping" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand ping" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand ping" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand status" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand status" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand status" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand status" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand status" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand config" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand config" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand config" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand config" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand config" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand top" -l interval -d 'Time between two looks' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand top" -l count -d 'Look this often and end; without it, until q is pressed' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand top" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand top" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand top" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand top" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand top" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand queue" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand queue" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand queue" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand queue" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand queue" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand workers" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand workers" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand workers" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand workers" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand workers" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand sessions" -l limit -d 'How many' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand sessions" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand sessions" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand sessions" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand sessions" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand sessions" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand locks" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand locks" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand locks" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand locks" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand locks" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and not __fish_seen_subcommand_from list inspect delete help" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and not __fish_seen_subcommand_from list inspect delete help" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and not __fish_seen_subcommand_from list inspect delete help" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and not __fish_seen_subcommand_from list inspect delete help" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and not __fish_seen_subcommand_from list inspect delete help" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and not __fish_seen_subcommand_from list inspect delete help" -f -a "list" -d 'List them'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and not __fish_seen_subcommand_from list inspect delete help" -f -a "inspect" -d 'Show the objects of L1 whose chunk hash begins so'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and not __fish_seen_subcommand_from list inspect delete help" -f -a "delete" -d 'Delete one object, or all of a chunk'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and not __fish_seen_subcommand_from list inspect delete help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from list" -l tier -d 'l1, or l2' -r -f -a "l1\t''
l2\t''"
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from list" -l adapter -d 'Type or index of the L2 adapter; the first one if absent' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from list" -l model -d 'Only this model\'s' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from list" -l limit -d 'At most so many' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from list" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from list" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from list" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from inspect" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from inspect" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from inspect" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from inspect" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from inspect" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from delete" -l tier -d 'l1, or l2' -r -f -a "l1\t''
l2\t''"
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from delete" -l adapter -d 'Type or index of the L2 adapter; the first one if absent' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from delete" -l model -d 'Only this model\'s' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from delete" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from delete" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from delete" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from delete" -l force -d 'Also if requests hold it'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from delete" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from help" -f -a "list" -d 'List them'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from help" -f -a "inspect" -d 'Show the objects of L1 whose chunk hash begins so'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from help" -f -a "delete" -d 'Delete one object, or all of a chunk'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand objects; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -f -a "set" -d 'Set a limit'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -f -a "get" -d 'Show a limit and what is used'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -f -a "list" -d 'Show all limits'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -f -a "delete" -d 'Take a limit away'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and not __fish_seen_subcommand_from set get list delete help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from set" -l limit-gb -d 'GiB, not negative' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from set" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from set" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from set" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from set" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from get" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from get" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from get" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from get" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from get" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from list" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from list" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from list" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from delete" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from delete" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from delete" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from delete" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from delete" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from help" -f -a "set" -d 'Set a limit'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from help" -f -a "get" -d 'Show a limit and what is used'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from help" -f -a "list" -d 'Show all limits'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from help" -f -a "delete" -d 'Take a limit away'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand quota; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -f -a "list" -d 'List them'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -f -a "add" -d 'Add one until the daemon ends; needs a token'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -f -a "drain" -d 'Give one nothing new'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -f -a "remove" -d 'Drain one, wait for what is under way, and let it go; what it stored stays'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and not __fish_seen_subcommand_from list add drain remove help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from list" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from list" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from list" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from list" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from add" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from add" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from add" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from add" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from drain" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from drain" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from drain" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from drain" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from drain" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from remove" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from remove" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from remove" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from remove" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from help" -f -a "list" -d 'List them'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from help" -f -a "add" -d 'Add one until the daemon ends; needs a token'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from help" -f -a "drain" -d 'Give one nothing new'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Drain one, wait for what is under way, and let it go; what it stored stays'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand adapters; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and not __fish_seen_subcommand_from show rm help" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and not __fish_seen_subcommand_from show rm help" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and not __fish_seen_subcommand_from show rm help" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and not __fish_seen_subcommand_from show rm help" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and not __fish_seen_subcommand_from show rm help" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and not __fish_seen_subcommand_from show rm help" -f -a "show" -d 'Show them, and whether a process uses them'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and not __fish_seen_subcommand_from show rm help" -f -a "rm" -d 'Remove one that no process uses'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and not __fish_seen_subcommand_from show rm help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from show" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from show" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from show" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from show" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from rm" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from rm" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from rm" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from rm" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from rm" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show them, and whether a process uses them'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from help" -f -a "rm" -d 'Remove one that no process uses'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand pool; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand clear" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand clear" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand clear" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand clear" -l force -d 'Also those that requests hold'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand clear" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand clear" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand drain" -l within -d 'How long the flush and the leases may take' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand drain" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand drain" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand drain" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand drain" -l no-wait -d 'Return at once instead of waiting for the end'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand drain" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand drain" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand upgrade" -l within -d 'How long to wait for the new process' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand upgrade" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand upgrade" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand upgrade" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand upgrade" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand upgrade" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and not __fish_seen_subcommand_from tail help" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and not __fish_seen_subcommand_from tail help" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and not __fish_seen_subcommand_from tail help" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and not __fish_seen_subcommand_from tail help" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and not __fish_seen_subcommand_from tail help" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and not __fish_seen_subcommand_from tail help" -f -a "tail" -d 'Print them as they happen'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and not __fish_seen_subcommand_from tail help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and __fish_seen_subcommand_from tail" -l prefix -d 'Only those whose name begins so, such as l2_' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and __fish_seen_subcommand_from tail" -l count -d 'End after so many' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and __fish_seen_subcommand_from tail" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and __fish_seen_subcommand_from tail" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and __fish_seen_subcommand_from tail" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and __fish_seen_subcommand_from tail" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and __fish_seen_subcommand_from tail" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and __fish_seen_subcommand_from help" -f -a "tail" -d 'Print them as they happen'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand events; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand doctor" -l python -d 'The Python that runs the engine: its lmcache package must fit the daemon' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand doctor" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand doctor" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand doctor" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand doctor" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l endpoint -d 'Where workers connect' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l workers -d 'Workers at the same time' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l cycles -d 'Cycles of each worker: a store and a retrieve' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l chunks -d 'Chunks of a prompt' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l layers -d 'Layers of the model' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l width -d 'Elements per token and layer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand bench" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and not __fish_seen_subcommand_from info replay help" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and not __fish_seen_subcommand_from info replay help" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and not __fish_seen_subcommand_from info replay help" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and not __fish_seen_subcommand_from info replay help" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and not __fish_seen_subcommand_from info replay help" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and not __fish_seen_subcommand_from info replay help" -f -a "info" -d 'What a recording holds, and whether it is whole'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and not __fish_seen_subcommand_from info replay help" -f -a "replay" -d 'Drive this release\'s storage code with a recording'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and not __fish_seen_subcommand_from info replay help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from info" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from info" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from info" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from info" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from info" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l speed -d 'recorded, fast, or a factor: 10 is ten times as fast as recorded' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l l1-size-gb -d 'Size of the pool, which is real memory; without it that of the recording daemon' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l eviction-policy -d 'What leaves a full pool, as for the daemon' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l l2-adapter -d 'A tier, as for the daemon; empty at the start, if two replays are to be the same. Repeat for more' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l csv -d 'Write the times of each operation there' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l json-file -d 'Write the whole report there' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from replay" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from help" -f -a "info" -d 'What a recording holds, and whether it is whole'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from help" -f -a "replay" -d 'Drive this release\'s storage code with a recording'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand trace; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand completions" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand completions" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand completions" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand completions" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand completions" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand man" -l url -d 'The daemon\'s admin API' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand man" -l token-file -d 'File with the token that the daemon asks for (its --http-token-file)' -r -F
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand man" -l timeout -d 'How long the daemon may take to answer' -r
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand man" -l json -d 'Print JSON'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand man" -s h -l help -d 'Print help'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "ping" -d 'Whether the daemon should get traffic, and how long its answer takes'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "status" -d 'The daemon in a few lines'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "config" -d 'What the daemon was told'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "top" -d 'A live view; q ends it'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "queue" -d 'What waits where, and what was lost'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "workers" -d 'The registered workers'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "sessions" -d 'The requests that the daemon remembers, the longest idle first'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "locks" -d 'Who holds objects, and how long'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "objects" -d 'The objects of a tier'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "quota" -d 'Bytes that each cache salt may use'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "adapters" -d 'The L2 adapters'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "pool" -d 'Pools in this machine\'s /dev/shm, with or without a daemon'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "clear" -d 'Drop the objects of L1'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "drain" -d 'End the daemon without losing anything: no new stores, flush to L2, wait for leases, exit'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "upgrade" -d 'Let a new process of the installed program take over: sockets, connections, pool; clients notice nothing'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "events" -d 'The daemon\'s events'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "doctor" -d 'Look at this machine: what would keep lmcached from working, and what to do'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "bench" -d 'Put load on the daemon and show how long its answers take'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "trace" -d 'Recordings of the storage layer; needs no daemon'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "completions" -d 'Print completions for a shell'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "man" -d 'Print the manual page'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and not __fish_seen_subcommand_from ping status config top queue workers sessions locks objects quota adapters pool clear drain upgrade events doctor bench trace completions man help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from objects" -f -a "list" -d 'List them'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from objects" -f -a "inspect" -d 'Show the objects of L1 whose chunk hash begins so'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from objects" -f -a "delete" -d 'Delete one object, or all of a chunk'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from quota" -f -a "set" -d 'Set a limit'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from quota" -f -a "get" -d 'Show a limit and what is used'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from quota" -f -a "list" -d 'Show all limits'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from quota" -f -a "delete" -d 'Take a limit away'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from adapters" -f -a "list" -d 'List them'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from adapters" -f -a "add" -d 'Add one until the daemon ends; needs a token'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from adapters" -f -a "drain" -d 'Give one nothing new'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from adapters" -f -a "remove" -d 'Drain one, wait for what is under way, and let it go; what it stored stays'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from pool" -f -a "show" -d 'Show them, and whether a process uses them'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from pool" -f -a "rm" -d 'Remove one that no process uses'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from events" -f -a "tail" -d 'Print them as they happen'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from trace" -f -a "info" -d 'What a recording holds, and whether it is whole'
complete -c lmcache-ctl -n "__fish_lmcache_ctl_using_subcommand help; and __fish_seen_subcommand_from trace" -f -a "replay" -d 'Drive this release\'s storage code with a recording'
