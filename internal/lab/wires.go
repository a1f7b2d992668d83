// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
	"github.com/openvwire/nsm/sdk/nserr"
)

var aPast = time.Unix(1, 0)

// wireTag begins the alias of every link that is the end of a wire.
const wireTag = "nsm:"

// WireLinks returns the links in the lab that are ends of wires, sorted, each as
// "NAMESPACE LINK". A namespace without a name, as 'nsm connect -- COMMAND'
// makes them, is called by a process in it.
func (l *Lab) WireLinks() (found []string, err error) {
	err = l.eachNamespace(func(name string) error {
		links, err := netlink.LinkList()
		for _, link := range links {
			if strings.HasPrefix(link.Attrs().Alias, wireTag) {
				found = append(found, name+" "+link.Attrs().Name)
			}
		}
		return err
	})
	slices.Sort(found)
	return found, err
}

// eachNamespace calls f on a thread in each namespace of the lab, those that only
// its processes have included.
func (l *Lab) eachNamespace(f func(name string) error) error {
	seen := make(map[uint64]bool) // by inode
	visit := func(name, path string) error {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || seen[st.Ino] {
			return nil // it is gone, or has a better name
		}
		seen[st.Ino] = true
		file, err := netns.Open(path)
		if errors.Is(err, nserr.NoNetNS) {
			return nil
		} else if err != nil {
			return err
		}
		table, err := netns.NewTableAt(file)
		if err != nil {
			return err
		}
		defer table.Close()
		return table.Self().Do(func() error { return f(name) })
	}
	for _, name := range namespacesOf(l.Name) {
		if err := visit(strings.TrimPrefix(name, l.Name+"-"), netns.RunDir+"/"+name); err != nil {
			return err
		}
	}
	for _, pid := range processesOf(l.Name) {
		if err := visit(fmt.Sprintf("(of %d)", pid), fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
			return err
		}
	}
	return nil
}

// Watch follows the links of a namespace.
type Watch struct {
	updates chan netlink.LinkUpdate
	stop    chan struct{}
	link    string
}

// WatchLink follows a link that the namespace has. The caller closes the watch.
func (ns *NetNS) WatchLink(name string) (*Watch, error) {
	w := &Watch{updates: make(chan netlink.LinkUpdate), stop: make(chan struct{}), link: name}
	err := ns.Do(func() error {
		if err := netlink.LinkSubscribe(w.updates, w.stop); err != nil {
			return err
		}
		if _, err := netlink.LinkByName(name); err != nil {
			w.Close()
			return fmt.Errorf("link %s: %w", name, err)
		}
		return nil
	})
	return w, err
}

// Gone waits until the link is deleted and returns when that was.
func (w *Watch) Gone(ctx context.Context) (time.Time, error) {
	for {
		select {
		case u, ok := <-w.updates:
			if !ok {
				return time.Time{}, errors.New("the watch has ended")
			}
			if u.Header.Type == unix.RTM_DELLINK && u.Link.Attrs().Name == w.link {
				return time.Now(), nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("link %s is still there: %w", w.link, ctx.Err())
		}
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	close(w.stop)
	for range w.updates { // until the subscription has ended
	}
}

// Links returns the names of the namespace's links, sorted.
func (ns *NetNS) Links() (names []string, err error) {
	err = ns.Do(func() error {
		links, err := netlink.LinkList()
		for _, link := range links {
			names = append(names, link.Attrs().Name)
		}
		return err
	})
	slices.Sort(names)
	return names, err
}
