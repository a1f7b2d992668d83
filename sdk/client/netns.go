// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

// namespaces are the network namespaces that a client has wires in, each open once.
type namespaces struct {
	mu   sync.Mutex
	open map[string]*namespace // by URL; guarded by mu
}

// namespace stays what it is as long as its descriptor is open: its inode is not another's.
type namespace struct {
	file  *os.File
	url   string // rpc.InodeURL
	users int    // guarded by namespaces.mu
}

// enter returns the namespace that f is a descriptor of, nil meaning that of this process,
// until leave.
func (n *namespaces) enter(f *os.File) (*namespace, error) {
	own, err := openNetNS(f)
	if err != nil {
		return nil, err
	}
	url, err := rpc.InodeURL(own)
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	ns := n.open[url]
	if ns != nil {
		_ = own.Close()
	} else {
		ns = &namespace{file: own, url: url}
		if n.open == nil {
			n.open = make(map[string]*namespace)
		}
		n.open[url] = ns
	}
	ns.users++
	return ns, nil
}

func (n *namespaces) leave(ns *namespace) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ns.users--; ns.users == 0 {
		delete(n.open, ns.url)
		_ = ns.file.Close()
	}
}

// openNetNS returns a descriptor of its own for the namespace f, nil meaning
// that of this process.
func openNetNS(f *os.File) (*os.File, error) {
	path := "/proc/self/ns/net"
	if f != nil {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, nserr.NoNetNS.Errorf("%s: %w", f.Name(), err)
		}
		var own *os.File
		err = errors.Join(raw.Control(func(fd uintptr) {
			own, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
		}), err)
		if err != nil {
			return nil, nserr.NoNetNS.Errorf("%s: %w", f.Name(), err)
		}
		return own, nil
	}
	own, err := os.Open(path)
	if err != nil {
		return nil, nserr.NoNetNS.Errorf("%s: %w", path, err)
	}
	return own, nil
}
