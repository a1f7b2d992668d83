// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/forwarder/plan"
	"github.com/openvwire/nsm/sdk/nserr"
)

// Found is a link that carries this forwarder's tag.
type Found = plan.Found

// FindLinks returns every link tagged as this forwarder's, in the namespaces that
// the table holds, that a process is in, or that are mounted somewhere. For
// each link found the caller owns one reference to its namespace in the table
// and releases it in the end. [plan.Wires] makes wires of them, to remove.
//
// A namespace that nothing but another process's open descriptor keeps alive is
// not seen; neither is a process that ended while it ran. WireGuard devices of
// userspace keep such namespaces alive for ever: they are found by who holds them,
// and marked as hidden.
func (k *Kernel) FindLinks(ctx context.Context) ([]Found, error) {
	keys, err := k.everyNamespace()
	defer func() {
		for key := range keys {
			k.namespaces.Release(key)
		}
	}()
	if err != nil {
		return nil, err
	}
	var all []Found
	for key := range keys {
		found, err := k.adoptFrom(ctx, key)
		if errors.Is(err, nserr.NoNetNS) {
			continue
		}
		if err != nil {
			for _, f := range all {
				k.namespaces.Release(f.NetNS)
			}
			return nil, err
		}
		for _, f := range found {
			if err := k.namespaces.Hold(f.NetNS); err == nil {
				all = append(all, f)
			}
		}
	}
	return k.addHeld(ctx, all), nil
}

// addHeld says of the links found which are wires of the tunnel, and adds what a process
// keeps alive of this forwarder and is not among them.
func (k *Kernel) addHeld(ctx context.Context, found []Found) []Found {
	if k.wireguard == nil {
		return found
	}
	devices, err := k.wireguard.Devices(ctx)
	if err != nil {
		k.log.Warn("list WireGuard devices", "error", err)
	}
	type place struct { // an end that moves is in two namespaces for a while
		tag   plan.Tag
		netns string
	}
	index := make(map[place]int, len(found))
	for i, f := range found {
		if f.LinkKind == "tun" {
			index[place{f.Tag.Device(), f.NetNS}] = i
		}
	}
	for _, d := range devices {
		kind := "tun"
		if d.Tunnel {
			kind = plan.LinkTunnel
		}
		tag, ok := plan.ParseTag(d.Tag)
		if i, is := index[place{tag, d.NetNS}]; is {
			found[i].LinkKind = kind
		} else if ok && tag.Owner == k.name {
			found = append(found, Found{Tag: tag, NetNS: d.NetNS, Name: d.Name, LinkKind: kind, Hidden: true})
		}
	}
	return found
}

func (k *Kernel) adoptFrom(ctx context.Context, key string) ([]Found, error) {
	if err := ctx.Err(); err != nil {
		return nil, timedOut(err)
	}
	links, err := k.links(key)
	var found []Found
	for _, l := range links {
		if tag, ok := plan.ParseTag(l.Attrs().Alias); ok && tag.Owner == k.name {
			found = append(found, Found{Tag: tag, NetNS: key, Name: l.Attrs().Name, LinkKind: linkKind(l)})
		}
	}
	return found, err
}

// links lists the links of a namespace.
func (k *Kernel) links(key string) (links []netlink.Link, err error) {
	ns, err := k.namespaces.Get(key)
	if err != nil {
		return nil, err
	}
	err = ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		links, err = dump(h.LinkList)
		if err == nil {
			k.known(ns).learn(k.name, links)
		}
		return err
	})
	if err != nil {
		return nil, unprivileged(err, "list links in namespace "+key)
	}
	return links, nil
}

// WireGuardKey returns the private key and UDP port of a wire's device in a
// namespace, as after a restart; false means that there is none.
func (k *Kernel) WireGuardKey(ctx context.Context, key, wireID string) (private [32]byte, port uint16, ok bool) {
	if k.wireguard == nil {
		return private, 0, false
	}
	for _, f := range k.linksOf(ctx, key, wireID) {
		ns, err := k.namespaces.Get(key)
		if err != nil {
			break
		}
		status, exists, err := k.wireguard.Read(ctx, ns, f.Name, f.Tag.Device().String())
		if err == nil && exists && status.PrivateKey != [32]byte{} {
			return status.PrivateKey, status.Port, true
		}
	}
	return private, 0, false
}

// everyNamespace adds all namespaces that can be found to the table and
// returns their keys, each with one reference for the caller.
func (k *Kernel) everyNamespace() (map[string]bool, error) {
	keys := make(map[string]bool)
	for _, key := range k.namespaces.Keys() {
		if k.namespaces.Hold(key) == nil {
			keys[key] = true
		}
	}
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return keys, nserr.Internal.Errorf("list processes: %w", err)
	}
	mounted, err := mountedNamespaces()
	if err != nil {
		return keys, nserr.Internal.Errorf("list mounts: %w", err)
	}
	seen := make(map[unix.Stat_t]bool)
	for _, path := range append(paths, mounted...) {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue // the process is gone, or a kernel thread's or another user's
		}
		if id := (unix.Stat_t{Dev: st.Dev, Ino: st.Ino}); seen[id] {
			continue
		} else {
			seen[id] = true
		}
		f, err := netns.Open(path)
		if err != nil {
			continue
		}
		key, err := k.namespaces.Add(f)
		if err != nil {
			continue
		}
		if keys[key] {
			k.namespaces.Release(key)
		}
		keys[key] = true
	}
	return keys, nil
}

// mountedNamespaces returns the mount points of network namespaces: what
// `ip netns`, container runtimes and CNI keep them alive by (proc(5), mountinfo).
func mountedNamespaces() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var paths []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 36 35 0:4 net:[4026532281] /run/netns/blue rw shared:1 - nsfs nsfs rw
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[3], "net:[") {
			paths = append(paths, unescape(fields[4]))
		}
	}
	return paths, lines.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}
