// SPDX-License-Identifier: Apache-2.0

// Package entries names workloads: it reads the file identities.yaml, whose
// entries map what is known about a process to the path of its SPIFFE ID.
//
//   - path: /payments/db
//     selectors: {uid: 1001, exe: /usr/bin/postgres}
//   - path: /payments/web
//     selectors: {uid: 1002, node: a}
//
// The first entry whose selectors all hold gives the path. A process that no
// entry names is known by its node and user.
//
// The uid and gid are what the kernel says about the process that connected.
// The exe tells apart programs of one user that do not attack each other; it
// does not protect them from each other, since a user controls its processes.
// So an exe belongs together with a uid.
package entries

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Workload is what is known about a process. Values, comparable.
type Workload struct {
	Node     string // name of the node that it runs on
	UID, GID uint32 // as the node's user namespace has them
	Exe      string // its program as the node sees it, absolute; "" = unknown
}

// Entry gives the path of a SPIFFE ID to the workloads for which all of its
// selectors hold.
type Entry struct {
	Path     string // /payments/db; never below /node or /authority
	UID, GID *uint32
	Exe      string // "" = any
	Node     string // "" = any
}

// List is a file of entries, in its order.
type List []Entry

// Match returns the path that the first fitting entry gives to w.
func (l List) Match(w Workload) (path string, ok bool) {
	for _, e := range l {
		if e.matches(w) {
			return e.Path, true
		}
	}
	return "", false
}

func (e Entry) matches(w Workload) bool {
	return (e.UID == nil || *e.UID == w.UID) &&
		(e.GID == nil || *e.GID == w.GID) &&
		(e.Exe == "" || e.Exe == w.Exe) &&
		(e.Node == "" || e.Node == w.Node)
}

// Parse reads a file of entries; name is its name in errors, which say the line
// and field and have the reason nserr.BadFlag.
func Parse(name string, data []byte) (List, error) {
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc yaml.Node
	err := decoder.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil, nil // empty, or comments alone
	}
	if err == nil {
		if more := decoder.Decode(new(yaml.Node)); !errors.Is(more, io.EOF) {
			err = errors.New("more than one document")
		}
	}
	if err != nil {
		return nil, nserr.BadFlag.Errorf("%s: %w", name, err)
	}
	list, err := parseList(doc.Content[0])
	if err != nil {
		return nil, nserr.BadFlag.Errorf("%s:%w", name, err).
			WithFix("write a list of {path: /some/path, selectors: {uid: 1001, gid: 1001, exe: /path, node: name}}")
	}
	return list, nil
}

// fail returns an error that starts with where in the file something is wrong.
func fail(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%d: %w", n.Line, fmt.Errorf(format, args...))
}

func parseList(n *yaml.Node) (List, error) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil, nil
	}
	if n.Kind != yaml.SequenceNode {
		return nil, fail(n, "not a list of entries")
	}
	list := make(List, 0, len(n.Content))
	for _, item := range n.Content {
		e := Entry{}
		err := fields(item, "entry", map[string]func(*yaml.Node) error{
			"path":      func(n *yaml.Node) (err error) { e.Path, err = parsePath(n); return err },
			"selectors": e.parseSelectors,
		})
		switch {
		case err != nil:
			return nil, err
		case e.Path == "":
			return nil, fail(item, "entry: path is missing")
		case e == Entry{Path: e.Path}:
			return nil, fail(item, "entry: selectors are missing: it would name every process")
		}
		list = append(list, e)
	}
	return list, nil
}

func (e *Entry) parseSelectors(n *yaml.Node) error {
	return fields(n, "selectors", map[string]func(*yaml.Node) error{
		"uid": func(n *yaml.Node) (err error) { e.UID, err = parseID(n, "uid"); return err },
		"gid": func(n *yaml.Node) (err error) { e.GID, err = parseID(n, "gid"); return err },
		"exe": func(n *yaml.Node) error {
			if n.Kind != yaml.ScalarNode || !path.IsAbs(n.Value) || path.Clean(n.Value) != n.Value {
				return fail(n, "exe: not the absolute path of a program")
			}
			e.Exe = n.Value
			return nil
		},
		"node": func(n *yaml.Node) error {
			if n.Kind != yaml.ScalarNode || spiffeid.ValidatePathSegment(n.Value) != nil {
				return fail(n, "node: not the name of a node")
			}
			e.Node = n.Value
			return nil
		},
	})
}

// fields calls, for each key of a mapping, what reads its value.
func fields(n *yaml.Node, what string, known map[string]func(*yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return fail(n, "%s: not a mapping", what)
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read, ok := known[key.Value]
		switch {
		case !ok:
			return fail(key, "%s: unknown field %q", what, key.Value)
		case seen[key.Value]:
			return fail(key, "%s: %s is there twice", what, key.Value)
		}
		seen[key.Value] = true
		if err := read(value); err != nil {
			return err
		}
	}
	return nil
}

func parseID(n *yaml.Node, what string) (*uint32, error) {
	id, err := strconv.ParseUint(n.Value, 10, 32)
	if n.Kind != yaml.ScalarNode || err != nil {
		return nil, fail(n, "%s: not a number from 0 to 4294967295", what)
	}
	id32 := uint32(id)
	return &id32, nil
}

func parsePath(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Value == "" {
		return "", fail(n, "path: not the path of a SPIFFE ID, such as /payments/db")
	}
	if err := spiffeid.ValidatePath(n.Value); err != nil {
		return "", fail(n, "path: %w", err)
	}
	if first, _, _ := strings.Cut(n.Value[1:], "/"); first == "node" || first == "authority" {
		return "", fail(n, "path: /%s is reserved for the mesh itself", first)
	}
	return n.Value, nil
}
