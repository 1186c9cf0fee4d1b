# Sourced by the download scripts: fetch an archive, check it, unpack it. Each step may be killed and run again.

say() { echo "$(basename "$0"): $*"; }
die() { say "$*" >&2; exit 1; }

md5_of() { md5sum "$1" | cut -d ' ' -f 1; }

# need_tools TOOL...: fail before the download if a program is missing
need_tools() {
    local tool
    for tool in "$@"; do
        command -v "$tool" > /dev/null || die "$tool is not installed; install it and run this again"
    done
}

# lock_folder DIR: wait while another download works in DIR. The lock is freed when this script ends, however it ends.
lock_folder() {
    exec 9< "$1"
    flock --nonblock 9 || { say "waiting for another download into $1"; flock 9; }
}

# download URL PART: continue PART, or start over if the server cannot continue it
download() {
    local url=$1 part=$2 status=0 http_code
    http_code=$(curl --fail --location --retry 3 --continue-at - --output "$part" --write-out '%{http_code}' "$url") ||
        status=$?
    # 33, 36: ranges refused; 416: PART is already as long. After other failures (no network) PART can be continued.
    if [[ $status == 33 || $status == 36 || ($status != 0 && $http_code == 416) ]]; then
        say "cannot continue $part; starting over"
        rm -f "$part"
        status=0
        curl --fail --location --retry 3 --output "$part" "$url" || status=$?
    fi
    [[ $status == 0 ]] || die "download of $url failed (curl error $status); run this again to continue it"
}

# fetch URL MD5 ARCHIVE: download ARCHIVE. It gets its name only after its checksum is verified.
fetch() {
    local url=$1 md5=$2 archive=$3 part=$3.part found
    if [[ -f $archive ]]; then
        mv "$archive" "$part"
    fi
    if [[ ! -f $part || $(md5_of "$part") != "$md5" ]]; then
        say "downloading $url"
        download "$url" "$part"
    fi
    found=$(md5_of "$part")
    if [[ $found != "$md5" ]]; then
        mv "$part" "$archive.bad"
        die "$url has the checksum $found, not $md5; kept as $archive.bad. Run this again for a fresh download."
    fi
    mv "$part" "$archive"
}

# install_archive URL MD5 ARCHIVE FOLDER UNPACK...: make FOLDER, which the command UNPACK... ARCHIVE TARGET extracts
install_archive() {
    local url=$1 md5=$2 archive=$3 folder=$4 unpacking=$4.unpacking
    shift 4
    rm -rf "$unpacking"
    if [[ -d $folder ]]; then
        say "$folder is there already"
        return
    fi
    fetch "$url" "$md5" "$archive"
    say "unpacking $archive"
    mkdir "$unpacking"
    "$@" "$archive" "$unpacking"
    mv "$unpacking/$(basename "$folder")" "$folder"
    rm -rf "$unpacking" "$archive"
    say "$folder is ready"
}
