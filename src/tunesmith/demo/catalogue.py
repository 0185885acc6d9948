"""The shop's fixed data: products with prices, cities, and the names of customers."""

# Category -> product -> price. Prices are integers, so that sums are exact, and all different, so that rankings by
# price have no ties.
PRODUCTS = {
    "Lighting": {"Desk Lamp": 39, "Floor Lamp": 89, "Reading Lamp": 27,
        "Paper Lantern": 14, "Garden Lantern": 33, "Wall Spotlight": 46},
    "Kitchen": {"Copper Pan": 64, "Frying Pan": 31, "Bread Knife": 22,
        "Chef Knife": 58, "Glass Kettle": 43, "Steel Kettle": 36},
    "Furniture": {"Oak Table": 320, "Side Table": 95, "Folding Chair": 52,
        "Office Chair": 180, "Pine Shelf": 74, "Corner Shelf": 61},
    "Stationery": {"Fountain Pen": 48, "Gel Pen": 4, "Leather Notebook": 24,
        "Pocket Notebook": 8, "Wall Calendar": 16, "Desk Calendar": 13},
    "Sports": {"Yoga Mat": 29, "Camping Mat": 41, "Tennis Racket": 110,
        "Squash Racket": 92, "Road Helmet": 68, "Ski Helmet": 125},
    "Toys": {"Wooden Puzzle": 18, "Animal Puzzle": 12, "Toy Train": 35,
        "Toy Tractor": 21, "Rag Doll": 25, "Paper Kite": 11},
    "Garden": {"Flower Pot": 9, "Clay Pot": 17, "Garden Hose": 37,
        "Pruning Shears": 28, "Hedge Shears": 45, "Steel Rake": 26},
    "Travel": {"Cabin Suitcase": 140, "Large Suitcase": 190, "Canvas Backpack": 72,
        "Hiking Backpack": 130, "Wash Bag": 19, "Neck Pillow": 23},
    "Audio": {"Studio Headphones": 210, "Cordless Headphones": 99, "Bookshelf Speaker": 240,
        "Shower Speaker": 34, "Record Player": 265, "Transistor Radio": 42},
    "Bedding": {"Feather Duvet": 150, "Summer Duvet": 79, "Wool Blanket": 85,
        "Baby Blanket": 32, "Silk Pillow": 54, "Linen Sheet": 66},
}  # fmt: skip

CITIES = (
    *("Lisbon", "Porto", "Madrid", "Vienna", "Prague", "Dublin", "Oslo", "Turin", "Lyon", "Ghent", "Krakow", "Bergen"),
    *("Zurich", "Malaga", "Berlin", "Rome", "Leeds", "Athens", "Geneva", "Utrecht"),
)

FIRST_NAMES = (
    *("Alice", "Amir", "Anna", "Bruno", "Carla", "Clara", "Daniel", "David", "Elena", "Emma", "Erik", "Eva", "Felix"),
    *("Greta", "Hugo", "Ines", "Ivan", "Jonas", "Julia", "Karim", "Laura", "Leo", "Lina", "Lucas", "Maria", "Marta"),
    *("Mira", "Nadia", "Nina", "Omar", "Oscar", "Paula", "Peter", "Rosa", "Samuel", "Sara", "Simon", "Sofia", "Tomas"),
)

LAST_NAMES = (
    *("Adler", "Alves", "Bauer", "Becker", "Berg", "Costa", "Dahl", "Dubois", "Duarte", "Egger", "Ferrari", "Fischer"),
    *("Garcia", "Haas", "Hansen", "Ivanov", "Jansen", "Keller", "Kowalski", "Larsen", "Lopez", "Martin", "Meyer"),
    *("Moreau", "Moretti", "Murphy", "Novak", "Nowak", "Olsen", "Pereira", "Petit", "Ramos", "Ricci", "Rossi"),
    *("Santos", "Silva", "Svensson", "Torres", "Vega", "Weber"),
)
