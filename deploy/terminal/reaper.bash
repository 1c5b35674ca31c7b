# Unlike typer's script, this does not split a session key at its colons.
_reaper_completion() {
    local line=${COMP_LINE:0:COMP_POINT} words current IFS=$' \t\n'
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]} - 1]}
    IFS=$'\n'
    COMPREPLY=( $( env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
                   _REAPER_COMPLETE=complete_bash "$1" ) )
    [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*:}"}"}")
    return 0
}

complete -o default -F _reaper_completion reaper
