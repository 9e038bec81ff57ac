#!/usr/bin/env bash
# A real kube-apiserver 1.20.2 with etcd on loopback, without a cluster, for the tests marked `kube`.
#
#     scripts/kube-apiserver.sh build FOLDER          builds it once: about five minutes of CPU, 2 GB meanwhile
#     scripts/kube-apiserver.sh prepare FOLDER STATE  makes STATE: certificates, ports, and what starts the two servers
#     scripts/kube-apiserver.sh start FOLDER STATE    the same, and runs both until Ctrl-C; `export KUBECONFIG=STATE/kubeconfig`
#
# Needs a machine whose apt knows a mirror of Debian, not root: bookworm's source package `kubernetes` is all of
# v1.20.2 with what it is made of, so nothing else is downloaded. A finished build is left as it is. GOMAXPROCS=1 keeps
# it to one core.
set -euo pipefail

# Counts the changes of this recipe that make another build.
recipe=1
stamp_name=.lora-sidecar-recipe
packages=(etcd-server golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev rsync libpopt0 libxxhash0)

fail() { # STATUS WORDS
    echo "kube-apiserver.sh: $2" >&2
    exit "$1"
}

# The mirror is the machine's own, whatever release of Debian it runs.
debian_mirror() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 ~ /^(bookworm|trixie|forky|sid|oldstable|stable|testing|unstable)$/ && $3 == "main" { print $1; exit }'
}

# An apt with a state of its own, so that the machine's stays as it is.
make_apt() { # FOLDER
    local apt=$1 mirror
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || fail 69 "find a mirror of Debian: apt's sources name none with the component main"
    mkdir -p "$apt"/{lists/partial,cache/archives/partial}
    : >"$apt/status"
    for kind in deb deb-src; do
        echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main"
    done >"$apt/sources.list"
    cat >"$apt/apt.conf" <<END
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
APT::Sandbox::User "";
Acquire::Languages "none";
END
}

build() { # FOLDER
    local folder=$1 work=$1.building stamp=$1/$stamp_name
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$recipe" ]; then
        echo "kube-apiserver is up to date: $folder"
        return
    fi
    for program in apt-get dpkg-deb flock make; do
        command -v "$program" >/dev/null || fail 69 "build kube-apiserver: this machine has no $program (it takes Debian with make)"
    done
    if [ -e "$folder" ] && [ ! -f "$folder/kube-apiserver" ] && [ -n "$(ls -A "$folder")" ]; then
        fail 73 "build kube-apiserver in $folder: the folder holds something else (give an empty or a new one)"
    fi
    mkdir -p "$(dirname "$folder")"
    exec 9>"$folder.lock"
    flock 9
    # Another build may have come to its end meanwhile.
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$recipe" ] && return
    rm -rf "$work"
    mkdir -p "$work"/{apt,packages,root,gopath/src/k8s.io}
    work=$(cd "$work" && pwd)

    echo "downloading the source of Kubernetes and what builds it"
    make_apt "$work/apt"
    (
        export APT_CONFIG=$work/apt/apt.conf
        apt-get update -qq
        cd "$work/packages"
        apt-get source -qq --download-only kubernetes
        apt-get download -qq "${packages[@]}"
    )
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$work/root"
    done
    local tree=$work/gopath/src/k8s.io/kubernetes
    mkdir "$tree"
    # Debian's patches touch kubectl alone.
    tar -xf "$work"/packages/kubernetes_*.orig.tar.* -C "$tree" --strip-components=1
    # The vendored reflect2 1.0.1 reads what Go 1.18 moved: the server looks well and dies when a map is written.
    rm -rf "$tree/vendor/github.com/modern-go/reflect2"
    cp -r "$work/root/usr/share/gocode/src/github.com/modern-go/reflect2" "$tree/vendor/github.com/modern-go/"

    echo "building kube-apiserver"
    (
        cd "$tree"
        export GOROOT=$work/root/usr/lib/go-1.19 GOPATH=$work/gopath GOCACHE=$work/go-cache TMPDIR=$work
        export PATH=$GOROOT/bin:$work/root/usr/bin:$PATH
        export LD_LIBRARY_PATH=$work/root/usr/lib/$(uname -m)-linux-gnu
        export GO111MODULE=off GOFLAGS= GOPROXY=off GOSUMDB=off GOTOOLCHAIN=local CGO_ENABLED=0
        export KUBE_GIT_VERSION=v1.20.2 KUBE_GIT_COMMIT=debian KUBE_GIT_TREE_STATE=clean
        export KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20
        nice -n 10 make WHAT=cmd/kube-apiserver
    ) >"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log" >&2; fail 70 "build kube-apiserver: see $work/build.log"; }

    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$tree"/_output/local/bin/*/*/kube-apiserver "$work/root/usr/bin/etcd" "$folder/"
    "$folder/kube-apiserver" --version
    # The stamp is written last, so a half-made build never carries it.
    echo "$recipe" >"$folder/$stamp_name"
    # Go makes its module cache read-only; the tree may hold such folders as well.
    chmod -R u+w "$work"
    rm -rf "$work"
    echo "done: $folder"
}

free_ports() { # COUNT
    "${PYTHON:-python3}" - "$1" <<'END'
import socket, sys

held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in held))
END
}

certificates() { # FOLDER
    local key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
    cd "$1"
    openssl req -x509 "${key[@]}" -keyout ca.key -out ca.crt -days 3650 -subj /CN=lora-sidecar-tests
    openssl req "${key[@]}" -keyout server.key -out server.csr -subj /CN=kube-apiserver
    openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out server.crt \
        -extfile <(echo "subjectAltName=IP:127.0.0.1,DNS:localhost")
    openssl genrsa -out sa.key 2048
    openssl rsa -in sa.key -pubout -out sa.pub
}

prepare() { # FOLDER STATE
    local folder state=$2 token api etcd peer
    folder=$(cd "$1" && pwd)
    [ -f "$folder/$stamp_name" ] || fail 69 "start kube-apiserver: $folder holds no finished build (run the build first)"
    mkdir -p "$state"
    [ -z "$(ls -A "$state")" ] || fail 73 "prepare $state: the folder is not empty (give an empty or a new one)"
    chmod 700 "$state"
    state=$(cd "$state" && pwd)
    (certificates "$state") 2>"$state/openssl.log" || { cat "$state/openssl.log" >&2; fail 70 "make certificates in $state"; }
    token=$(openssl rand -hex 16)
    read -r api etcd peer < <(free_ports 3)
    echo "$token,admin,1,system:masters" >"$state/tokens.csv"
    echo "https://127.0.0.1:$api" >"$state/url"
    echo "$token" >"$state/admin-token"
    cat >"$state/run-etcd" <<END
#!/bin/sh
exec "$folder/etcd" --data-dir "$state/etcd" --logger zap --log-level warn \\
    --listen-client-urls http://127.0.0.1:$etcd --advertise-client-urls http://127.0.0.1:$etcd \\
    --listen-peer-urls http://127.0.0.1:$peer
END
    cat >"$state/run-kube-apiserver" <<END
#!/bin/sh
exec "$folder/kube-apiserver" --etcd-servers http://127.0.0.1:$etcd \\
    --bind-address 127.0.0.1 --advertise-address 127.0.0.1 --secure-port $api \\
    --tls-cert-file "$state/server.crt" --tls-private-key-file "$state/server.key" --client-ca-file "$state/ca.crt" \\
    --token-auth-file "$state/tokens.csv" --authorization-mode RBAC \\
    --service-account-issuer https://kubernetes.default.svc --service-account-signing-key-file "$state/sa.key" \\
    --service-account-key-file "$state/sa.pub" --service-cluster-ip-range 10.0.0.0/24
END
    chmod +x "$state/run-etcd" "$state/run-kube-apiserver"
    cat >"$state/kubeconfig" <<END
apiVersion: v1
kind: Config
current-context: tests
contexts: [{name: tests, context: {cluster: tests, user: admin}}]
clusters: [{name: tests, cluster: {server: "https://127.0.0.1:$api", certificate-authority: "$state/ca.crt"}}]
users: [{name: admin, user: {token: $token}}]
END
}

start() { # FOLDER STATE
    prepare "$1" "$2"
    "$2/run-etcd" >"$2/etcd.log" 2>&1 &
    local etcd=$!
    "$2/run-kube-apiserver" >"$2/kube-apiserver.log" 2>&1 &
    local api=$!
    trap 'kill $api; wait $api; kill $etcd; wait $etcd; exit 0' INT TERM
    echo "starting $(cat "$2/url"); export KUBECONFIG=$2/kubeconfig"
    wait -n || true
    kill $api $etcd 2>/dev/null || true
    fail 70 "one of the two servers ended: see $2/kube-apiserver.log and $2/etcd.log"
}

case "${1-} $#" in
    "build 2") build "$2" ;;
    "prepare 3") prepare "$2" "$3" ;;
    "start 3") start "$2" "$3" ;;
    *)
        sed -n '4,6s/^# *//p' "$0" >&2
        exit 64
        ;;
esac
