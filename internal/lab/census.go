// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// Descriptors counts what the open descriptors of a process refer to, by kind:
// "socket", "pipe", "namespace", "tun", "file" …
func Descriptors(pid int) (map[string]int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	count := make(map[string]int)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		count[descriptorKind(target)]++
	}
	return count, nil
}

// descriptorKind sorts what /proc/PID/fd says (proc(5)).
func descriptorKind(target string) string {
	switch {
	case strings.HasPrefix(target, "socket:"):
		return "socket"
	case strings.HasPrefix(target, "pipe:"):
		return "pipe"
	case strings.HasPrefix(target, "net:["):
		return "namespace"
	case target == "/dev/net/tun":
		return "tun"
	case strings.HasPrefix(target, "anon_inode:"):
		return strings.Trim(strings.TrimPrefix(target, "anon_inode:"), "[]")
	case strings.HasSuffix(target, ".sock"):
		return "path of a socket"
	}
	return "file"
}

// profilePorts are where daemons serve their profiles, on the node's address.
var profilePorts = map[string]int{"authority": 6061, "registry": 6062, "manager": 6063, "forwarder": 6064, "up": 6065}

func (n *Node) profileAddress(part string) string {
	return fmt.Sprintf("%s:%d", n.Addr, profilePorts[part])
}

// Goroutines returns how many goroutines a daemon has. The lab must have been
// made with Profiles.
func (p *Process) Goroutines(ctx context.Context) (n int, err error) {
	profile, err := p.Stacks(ctx)
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(profile, "\n")
	if _, err := fmt.Sscanf(first, "goroutine profile: total %d", &n); err != nil {
		return 0, fmt.Errorf("goroutines of %s: %q: %w", p.Command, first, err)
	}
	return n, nil
}

// Stacks returns where the goroutines of a daemon are, and how many at each place. The
// lab must have been made with Profiles.
func (p *Process) Stacks(ctx context.Context) (string, error) {
	address := p.ns.lab.Node(p.Node).profileAddress(p.Part)
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = p.ns.Do(func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/debug/pprof/goroutine?debug=1", nil)
	if err != nil {
		return "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("goroutines of %s: %w", p.Command, err)
	}
	defer resp.Body.Close()
	profile, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("goroutines of %s: %w", p.Command, err)
	}
	return string(profile), nil
}
