// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/openvwire/nsm/forwarder/netns"
)

var aPast = time.Unix(1, 0)

// wireTag begins the alias of every link that is the end of a wire.
const wireTag = "nsm:"

// WireLinks returns the links in the lab that are ends of wires, sorted, each as
// "NAMESPACE LINK". A namespace without a name, as 'nsm connect -- COMMAND'
// makes them, is called by a process in it.
func (l *Lab) WireLinks() ([]string, error) {
	paths := make(map[string]string) // by name
	for _, name := range namespacesOf(l.Name) {
		paths[strings.TrimPrefix(name, l.Name+"-")] = netns.RunDir + "/" + name
	}
	for _, pid := range processesOf(l.Name) {
		paths[fmt.Sprintf("(of %d)", pid)] = fmt.Sprintf("/proc/%d/ns/net", pid)
	}
	seen := make(map[uint64]bool) // namespaces, by inode
	var links []string
	for _, name := range slices.Backward(sortedKeys(paths)) { // names before numbers: '(' sorts first
		var st unix.Stat_t
		if unix.Stat(paths[name], &st) != nil || seen[st.Ino] {
			continue
		}
		seen[st.Ino] = true
		found, err := wireLinksAt(paths[name])
		if err != nil {
			return nil, err
		}
		for _, link := range found {
			links = append(links, name+" "+link)
		}
	}
	slices.Sort(links)
	return links, nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func wireLinksAt(path string) (names []string, err error) {
	f, err := netns.Open(path)
	if err != nil {
		if _, statErr := os.Stat(path); statErr != nil {
			return nil, nil // its process has ended meanwhile
		}
		return nil, err
	}
	table, err := netns.NewTableAt(f)
	if err != nil {
		return nil, err
	}
	defer table.Close()
	err = table.Self().Do(func() error {
		links, err := netlink.LinkList()
		for _, link := range links {
			if strings.HasPrefix(link.Attrs().Alias, wireTag) {
				names = append(names, link.Attrs().Name)
			}
		}
		return err
	})
	return names, err
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
